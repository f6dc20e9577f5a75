"""Loading a policy and its reference, heads, log-probabilities of responses, sampling."""
