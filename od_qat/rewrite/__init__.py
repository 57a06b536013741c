"""The rewriter: plan first (match, decide, name), edit second.

policy -> layers -> plan -> fake_quant, folding -> passes -> api
"""
