"""Graph, keys, plan and execution of a declared pipeline; light enough to plan without torch."""
