"""Rewrites a graph for quantization: plans first, then drafts all edits, then commits them at once.

The modules in reading order:

Recognising:  policy -> live; parts, tensors -> unfused_norms -> batch_norms -> layers; noise, weighted_sums
Planning:     matches, between_layers; clones, rules -> plan -> planned_quants -> planner
Editing:      fake_quant, folding -> passes; report -> api
"""
