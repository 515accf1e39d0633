"""Images changed in many ways, and what models still recognise of them.

`cells`, `corruptions` and `saliency` change pixels, `lesions` changes what a block is given,
`attacks` follows gradients. `trials` says what a test does with a batch, `planning` which trials a
spec asks for, `work` runs them in a pass, `summary` counts, `drawing` shows.
"""
