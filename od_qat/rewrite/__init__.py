"""The rewriter: plan first (match, decide, name), draft the edits, commit them all at once.

policy -> layers, rules -> plan -> fake_quant, folding -> passes -> api
"""
