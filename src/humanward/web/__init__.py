"""The labelling page and the researcher's pages, over HTTP. Never imports torch."""
