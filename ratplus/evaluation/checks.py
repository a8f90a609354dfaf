"""Whether an evaluation or a fine-tuning can run at all, asked before anything is trained for it; torch-free."""

from __future__ import annotations

from ratplus.config.cell import Config
from ratplus.data.corpus import Corpus
from ratplus.evaluation.cloze import questions

# A longer text has room for cloze, and to draw its questions takes seconds.
_SHORT_TOKENS = 1 << 20


def check_suites(config: Config, corpus: Corpus) -> None:
    """Refuse an evaluation, or a fine-tuning, that could not run.

    Raises:
        MissingExtra, TaskError: of ratplus.evaluation.harness, where lm-eval or a task is not there.
        CorpusError, TokenizerError: text is asked for, but the corpus' tokenizer is not there.
        ValueError: questions that do not fit the context, or too little held-out text for them.
    """
    if config.train.sft.steps:
        from ratplus.data.sft import check_split

        check_split(config, corpus)
    asked = config.eval
    if asked.positions.width and len(corpus.validation) <= config.train.context:
        raise ValueError(
            f"eval.positions: the held-out text has only {len(corpus.validation)} tokens, too few for one row of "
            f"train.context={config.train.context}; give more text or a larger data.validation_fraction"
        )
    if asked.cloze.items and len(corpus.validation) < _SHORT_TOKENS:
        questions(corpus.validation, corpus.eos_id, asked.cloze.items, *asked.cloze.shape(config.train.context))
    if asked.tasks:
        from ratplus.evaluation.harness import check_tasks

        check_tasks(asked.tasks)
        corpus.tokenizer()
    if asked.niah.tasks:
        from ratplus.data.needles import check_section

        check_section(asked.niah, corpus.tokenizer(), config.train.context)
