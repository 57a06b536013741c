"""Configs as protocol buffer messages: text, overrides, and the graph_rewriter block with its extension."""
