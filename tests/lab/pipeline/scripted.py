"""Outcomes by hand, and an experiment on scripted engines, that several tests of the pipeline share."""

import numpy as np

from ensemblehub.lab.pipeline.cascade import Outcomes

# Four questions, two levels.  Answers cost 10 and 30, of which 2 and 21 reach the level; judging 1 and 3.
HAND = Outcomes(
    probabilities=np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.3], [0.1, 0.2]]),
    correct=np.array([[1, 0], [0, 1], [1, 0], [0, 1]], bool),
    cost=np.tile([10.0, 30.0], (4, 1)),
    judging=np.tile([1.0, 3.0], (4, 1)),
    reached=np.tile([2.0, 21.0], (4, 1)),
    mentor_correct=np.array([1, 1, 0, 1], bool),
    mentor_cost=np.full(4, 100.0),
    visited=np.ones((4, 2), bool),
)

YAML = """
model_specs:
  - name: big
    engine: echo
    parameters: 9000000
    replies: {{"": "Goal: x Planning: y Retrieval: z Action: w so the answer is \\\\boxed{{9}}"}}
  - name: small
    engine: echo
    parameters: 1000000
    confident: [harbour, boats]
    replies: {{boats: "it is \\\\boxed{{4}}", "Goal: x": "it is \\\\boxed{{9}}", "": "it is \\\\boxed{{12}}"}}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params:
    levels: {{low: 2, high: 4}}
    start_with_intern: true
    judge: {folder}/judge
experiment: {{task: builtin_math, results: {folder}/results, judge: logistic, concurrency: 8}}
"""
