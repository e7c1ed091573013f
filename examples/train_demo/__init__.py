"""The training of the bundled model that reads drawn street signs; its world and questions are `sparsevlm_jax.demo`'s.

In a clone, with the `demo` extra:

    python -m examples.train_demo.train --out RUN                       # from nothing; a stopped run goes on
    python -m examples.train_demo.export --run RUN --to FOLDER          # a Hugging Face folder, for `load(FOLDER)`
    python -m examples.train_demo.evaluate --model FOLDER               # held-out questions, by kind
"""
