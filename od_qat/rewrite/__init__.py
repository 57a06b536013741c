"""The rewriter: plan first (match, decide, name), draft the edits, commit them all at once.

What is there:       policy -> parts, tensors -> unfused_norms -> batch_norms -> layers; noise
What is to be done:  layers, noise -> matches, between_layers; clones, rules -> quants -> planner -> plan
How it is done:      plan -> fake_quant, folding -> passes; report -> api
"""
