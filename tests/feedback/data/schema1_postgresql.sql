CREATE TABLE about (
    key text NOT NULL,
    value text NOT NULL
);
CREATE TABLE assignments (
    question_id text NOT NULL,
    labeler text NOT NULL,
    permutation text NOT NULL,
    state text NOT NULL,
    expires double precision NOT NULL,
    attempt integer NOT NULL,
    CONSTRAINT assignments_state_check CHECK ((state = ANY (ARRAY['leased'::text, 'free'::text, 'answered'::text, 'skipped'::text])))
);
CREATE TABLE events (
    seq integer NOT NULL,
    kind text NOT NULL,
    question_id text NOT NULL,
    labeler text NOT NULL,
    client_event_id text NOT NULL,
    target integer,
    body text NOT NULL,
    "time" text NOT NULL,
    hash text NOT NULL
);
CREATE VIEW current_events AS
 SELECT events.seq,
    events.kind,
    events.question_id,
    events.labeler,
    events.client_event_id,
    events.target,
    events.body,
    events."time",
    events.hash
   FROM events
  WHERE (NOT (EXISTS ( SELECT 1
           FROM events later
          WHERE (later.target = events.seq))));
CREATE TABLE labelers (
    name text NOT NULL,
    cursor integer NOT NULL
);
CREATE TABLE questions (
    id text NOT NULL,
    "position" integer NOT NULL,
    round integer NOT NULL,
    split text NOT NULL,
    overlap integer NOT NULL,
    leases integer NOT NULL,
    labels integer NOT NULL,
    is_open integer GENERATED ALWAYS AS (
CASE
    WHEN ((labels + leases) < overlap) THEN 1
    ELSE 0
END) STORED,
    body text NOT NULL,
    CONSTRAINT questions_check CHECK (((leases >= 0) AND (labels >= 0) AND (overlap >= 1)))
);
INSERT INTO about VALUES ('schema', '1');
INSERT INTO assignments VALUES ('q0', 'ann', '[0, 1, 2, 3]', 'answered', 0, 0);
INSERT INTO assignments VALUES ('q0', 'bob', '[0, 1, 2, 3]', 'answered', 0, 0);
INSERT INTO assignments VALUES ('q1', 'ann', '[0, 1, 2, 3]', 'answered', 0, 0);
INSERT INTO assignments VALUES ('q1', 'bob', '[0, 1, 2, 3]', 'answered', 0, 0);
INSERT INTO assignments VALUES ('q5', 'ann', '[0, 1, 2, 3]', 'answered', 0, 0);
INSERT INTO assignments VALUES ('q5', 'bob', '[0, 1, 2, 3]', 'answered', 0, 0);
INSERT INTO assignments VALUES ('q3', 'ann', '[1, 0, 2, 3]', 'leased', 1000607, 0);
INSERT INTO assignments VALUES ('q2', 'ann', '[0, 2, 3, 1]', 'answered', 1000611, 1);
INSERT INTO assignments VALUES ('q3', 'bob', '[0, 1, 2, 3]', 'skipped', 0, 0);
INSERT INTO assignments VALUES ('q3', 'cy', '[0, 1, 2, 3]', 'skipped', 0, 0);
INSERT INTO assignments VALUES ('q4', 'cy', '[0, 1]', 'answered', 0, 0);
INSERT INTO assignments VALUES ('q5', 'dee', '[2, 1, 0, 3]', 'leased', 1000621, 0);
INSERT INTO events VALUES (1, 'label', 'q0', 'ann', 'ann 0', NULL, '{"answer":1,"comment":"","confidence":null,"kind":"best_of_k","permutation":[0,1,2,3],"question":"23cf8a243ac59da92567a3820d5a0460843b95cdfab347fc85d041907df02d08","seconds":2.5}', '1970-01-12T13:46:41.000+00:00', '5ffe9ce0d59baa9dd7274fb7fddfaffe845baf0d461faed56185fff490249c5c');
INSERT INTO events VALUES (2, 'label', 'q0', 'bob', 'bob 0', NULL, '{"answer":2,"comment":"","confidence":null,"kind":"best_of_k","permutation":[0,1,2,3],"question":"23cf8a243ac59da92567a3820d5a0460843b95cdfab347fc85d041907df02d08","seconds":2.5}', '1970-01-12T13:46:42.000+00:00', 'faa43007c337c5510b6eabe25b83e02993d5861c124f28dce44e9cebdf7cf5f8');
INSERT INTO events VALUES (3, 'label', 'q1', 'ann', 'ann 1', NULL, '{"answer":3,"comment":"","confidence":null,"kind":"best_of_k","permutation":[0,1,2,3],"question":"81463d610bc939930ac6f758d955ee9a4857b56ceeddf3ae101a94c14f71405d","seconds":2.5}', '1970-01-12T13:46:43.000+00:00', 'c8300f02114dafbece421e35415809d32ffd1aa37c4528569a940e8afd408bb9');
INSERT INTO events VALUES (4, 'label', 'q1', 'bob', 'bob 1', NULL, '{"answer":3,"comment":"","confidence":null,"kind":"best_of_k","permutation":[0,1,2,3],"question":"81463d610bc939930ac6f758d955ee9a4857b56ceeddf3ae101a94c14f71405d","seconds":2.5}', '1970-01-12T13:46:44.000+00:00', 'f2434997ea7cb2507426372c5a62d434a84927d24fe29586f5ecabab629bde91');
INSERT INTO events VALUES (5, 'label', 'q5', 'ann', 'ann 5', NULL, '{"answer":0,"comment":"a \"quoted\" word","confidence":null,"kind":"best_of_k","permutation":[0,1,2,3],"question":"678e89f5bbda3763713e8fc2249d92fc2a506e3e43a220844603b29a83a77720","seconds":2.5}', '1970-01-12T13:46:45.000+00:00', 'dfaf6378ffeec93962939980c28fb4803b168c95760dd94d2aad77572fa7692f');
INSERT INTO events VALUES (6, 'label', 'q5', 'bob', 'bob 5', NULL, '{"answer":0,"comment":"a \"quoted\" word","confidence":null,"kind":"best_of_k","permutation":[0,1,2,3],"question":"678e89f5bbda3763713e8fc2249d92fc2a506e3e43a220844603b29a83a77720","seconds":2.5}', '1970-01-12T13:46:46.000+00:00', 'aae794cc98c66f4847fe539cf2385053e73c17a1b0feb5577e0de98f81d059ad');
INSERT INTO events VALUES (7, 'label', 'q2', 'ann', 'ann 2', NULL, '{"answer":0,"comment":"","confidence":null,"kind":"best_of_k","permutation":[0,2,3,1],"question":"918236ac6347c8a8baa7e82fa72a8e23c604fbce11f5159338cdb70ea2e5f2a9","seconds":null}', '1970-01-12T13:46:49.000+00:00', '14b344c3b840a30caba77146114397b1ca8e99520dc0c95c8f767ed340dbba9c');
INSERT INTO events VALUES (8, 'undo', 'q2', 'ann', 'u1', 7, '{"kind":"label"}', '1970-01-12T13:46:52.000+00:00', '6970b4a2fe323641941a5a159e96be0c479e35e4972838ab292a65455df72db6');
INSERT INTO events VALUES (9, 'label', 'q2', 'ann', 'ann 2 again', NULL, '{"answer":2,"comment":"","confidence":0.5,"kind":"best_of_k","permutation":[0,2,3,1],"question":"918236ac6347c8a8baa7e82fa72a8e23c604fbce11f5159338cdb70ea2e5f2a9","seconds":null}', '1970-01-12T13:46:53.000+00:00', '4df5188bf9ce4be5e92efea93e122413ec42694c6b2c81a0ec830fe15023ca01');
INSERT INTO events VALUES (10, 'skip', 'q3', 'bob', 's1', NULL, '{"reason":"cannot judge"}', '1970-01-12T13:46:54.000+00:00', 'b12bd9162df2cdf1041aa0f3935b8c27ea1df6eb0a9ab71ff7c3f47ee7fad1ea');
INSERT INTO events VALUES (11, 'skip', 'q3', 'cy', 's1', NULL, '{"reason":""}', '1970-01-12T13:46:55.000+00:00', 'a4185a395bf8fb28d9f695d612f501be719ac465645f55c31bd5b83e3344aee3');
INSERT INTO events VALUES (12, 'label', 'q4', 'cy', 'cy 4', NULL, '{"answer":"tie","comment":"","confidence":null,"kind":"pair","permutation":[0,1],"question":"644ff493c2e9f4858f25cd04de77dcbcc9b7eb344a81a15167501cf9e67ad551","seconds":null}', '1970-01-12T13:46:56.000+00:00', '4100adf88aef321fdf5b193aea67a6ad766b30f545d7155632f16674cdb62000');
INSERT INTO events VALUES (13, 'flag', 'q5', 'cy', 'f1', NULL, '{"reason":"a name"}', '1970-01-12T13:46:57.000+00:00', '92c116ccdbfd56c489acc908d81507a8e174ecd18be214dc38fcf4e4bba1401a');
INSERT INTO events VALUES (14, 'flag', 'q6', 'cy', 'f2', NULL, '{"reason":""}', '1970-01-12T13:46:58.000+00:00', 'ff7180a7d5e25d70521c9763aa096ec4598e63974dc9c9a54e5c0a94767a9db6');
INSERT INTO events VALUES (15, 'undo', 'q6', 'cy', 'u1', 14, '{"kind":"flag"}', '1970-01-12T13:47:00.000+00:00', '707cf120e6b81a122cfc5552850f4795b7f494f32f59d5cf14579d332c3f54ba');
INSERT INTO labelers VALUES ('ann', 3);
INSERT INTO labelers VALUES ('dee', 7);
INSERT INTO questions VALUES ('q6', 7, 2, 'train', 1, 0, 0, DEFAULT, '{"id":"q6","instructions":"","kind":"best_of_k","overlap":1,"prompt":{"id":"p6","metadata":{},"text":"Once upon a time 6","tokens":[]},"responses":[{"policy":"","sampling":{},"source":"","text":"a good day, number 6.","tokenizer":"","tokens":[6,0]},{"policy":"","sampling":{},"source":"","text":"a bad day, number 6.","tokenizer":"","tokens":[6,1]},{"policy":"","sampling":{},"source":"","text":"a plain day, number 6.","tokenizer":"","tokens":[6,2]},{"policy":"","sampling":{},"source":"","text":"a fine day, number 6.","tokenizer":"","tokens":[6,3]}],"round":2,"split":"train"}');
INSERT INTO questions VALUES ('q7', 8, 2, 'train', 1, 0, 0, DEFAULT, '{"id":"q7","instructions":"","kind":"best_of_k","overlap":1,"prompt":{"id":"p7","metadata":{},"text":"Once upon a time 7","tokens":[]},"responses":[{"policy":"","sampling":{},"source":"","text":"a good day, number 7.","tokenizer":"","tokens":[7,0]},{"policy":"","sampling":{},"source":"","text":"a bad day, number 7.","tokenizer":"","tokens":[7,1]},{"policy":"","sampling":{},"source":"","text":"a plain day, number 7.","tokenizer":"","tokens":[7,2]},{"policy":"","sampling":{},"source":"","text":"a fine day, number 7.","tokenizer":"","tokens":[7,3]}],"round":2,"split":"train"}');
INSERT INTO questions VALUES ('q3', 4, 1, 'train', 1, 1, 0, DEFAULT, '{"id":"q3","instructions":"","kind":"best_of_k","overlap":1,"prompt":{"id":"p3","metadata":{},"text":"Once upon a time 3","tokens":[]},"responses":[{"policy":"","sampling":{},"source":"","text":"a good day, number 3.","tokenizer":"","tokens":[3,0]},{"policy":"","sampling":{},"source":"","text":"a bad day, number 3.","tokenizer":"","tokens":[3,1]},{"policy":"","sampling":{},"source":"","text":"a plain day, number 3.","tokenizer":"","tokens":[3,2]},{"policy":"","sampling":{},"source":"","text":"a fine day, number 3.","tokenizer":"","tokens":[3,3]}],"round":1,"split":"train"}');
INSERT INTO questions VALUES ('q0', 1, 0, 'train', 2, 0, 2, DEFAULT, '{"id":"q0","instructions":"","kind":"best_of_k","overlap":2,"prompt":{"id":"p0","metadata":{},"text":"Once upon a time 0","tokens":[]},"responses":[{"policy":"","sampling":{},"source":"","text":"a good day, number 0.","tokenizer":"","tokens":[0,0]},{"policy":"","sampling":{},"source":"","text":"a bad day, number 0.","tokenizer":"","tokens":[0,1]},{"policy":"","sampling":{},"source":"","text":"a plain day, number 0.","tokenizer":"","tokens":[0,2]},{"policy":"","sampling":{},"source":"","text":"a fine day, number 0.","tokenizer":"","tokens":[0,3]}],"round":0,"split":"train"}');
INSERT INTO questions VALUES ('q1', 2, 0, 'train', 2, 0, 2, DEFAULT, '{"id":"q1","instructions":"","kind":"best_of_k","overlap":2,"prompt":{"id":"p1","metadata":{},"text":"Once upon a time 1","tokens":[]},"responses":[{"policy":"","sampling":{},"source":"","text":"a good day, number 1.","tokenizer":"","tokens":[1,0]},{"policy":"","sampling":{},"source":"","text":"a bad day, number 1.","tokenizer":"","tokens":[1,1]},{"policy":"","sampling":{},"source":"","text":"a plain day, number 1.","tokenizer":"","tokens":[1,2]},{"policy":"","sampling":{},"source":"","text":"a fine day, number 1.","tokenizer":"","tokens":[1,3]}],"round":0,"split":"train"}');
INSERT INTO questions VALUES ('q4', 5, 1, 'train', 1, 0, 1, DEFAULT, '{"id":"q4","instructions":"","kind":"pair","overlap":1,"prompt":{"id":"p4","metadata":{},"text":"Once upon a time 4","tokens":[]},"responses":[{"policy":"","sampling":{},"source":"","text":"a good day, number 4.","tokenizer":"","tokens":[4,0]},{"policy":"","sampling":{},"source":"","text":"a bad day, number 4.","tokenizer":"","tokens":[4,1]}],"round":1,"split":"train"}');
INSERT INTO questions VALUES ('q2', 3, 0, 'train', 1, 0, 1, DEFAULT, '{"id":"q2","instructions":"","kind":"best_of_k","overlap":1,"prompt":{"id":"p2","metadata":{},"text":"Once upon a time 2","tokens":[]},"responses":[{"policy":"","sampling":{},"source":"","text":"a good day, number 2.","tokenizer":"","tokens":[2,0]},{"policy":"","sampling":{},"source":"","text":"a bad day, number 2.","tokenizer":"","tokens":[2,1]},{"policy":"","sampling":{},"source":"","text":"a plain day, number 2.","tokenizer":"","tokens":[2,2]},{"policy":"","sampling":{},"source":"","text":"a fine day, number 2.","tokenizer":"","tokens":[2,3]}],"round":0,"split":"train"}');
INSERT INTO questions VALUES ('q5', 6, 1, 'validation', 3, 1, 2, DEFAULT, '{"id":"q5","instructions":"","kind":"best_of_k","overlap":3,"prompt":{"id":"p5","metadata":{},"text":"Once upon a time 5","tokens":[]},"responses":[{"policy":"","sampling":{},"source":"","text":"a good day, number 5.","tokenizer":"","tokens":[5,0]},{"policy":"","sampling":{},"source":"","text":"a bad day, number 5.","tokenizer":"","tokens":[5,1]},{"policy":"","sampling":{},"source":"","text":"a plain day, number 5.","tokenizer":"","tokens":[5,2]},{"policy":"","sampling":{},"source":"","text":"a fine day, number 5.","tokenizer":"","tokens":[5,3]}],"round":1,"split":"validation"}');
ALTER TABLE ONLY about
    ADD CONSTRAINT about_pkey PRIMARY KEY (key);
ALTER TABLE ONLY assignments
    ADD CONSTRAINT assignments_pkey PRIMARY KEY (question_id, labeler);
ALTER TABLE ONLY events
    ADD CONSTRAINT events_labeler_client_event_id_key UNIQUE (labeler, client_event_id);
ALTER TABLE ONLY events
    ADD CONSTRAINT events_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY labelers
    ADD CONSTRAINT labelers_pkey PRIMARY KEY (name);
ALTER TABLE ONLY questions
    ADD CONSTRAINT questions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY questions
    ADD CONSTRAINT questions_position_key UNIQUE ("position");
CREATE INDEX assignments_by_labeler ON assignments USING btree (labeler, state);
CREATE INDEX events_by_labeler ON events USING btree (labeler, seq);
CREATE INDEX events_by_question ON events USING btree (question_id);
CREATE INDEX live_leases ON assignments USING btree (expires) WHERE (state = 'leased'::text);
CREATE INDEX open_questions ON questions USING btree (is_open, "position");
CREATE INDEX questions_by_round ON questions USING btree (round, "position");
CREATE UNIQUE INDEX undone ON events USING btree (target) WHERE (target IS NOT NULL);
