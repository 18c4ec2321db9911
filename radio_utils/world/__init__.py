"""Everything that makes Alice and Bob: corpus, models, instruction data, mixtures, fine-tuning.

:class:`radio_utils.world.world.World` puts them together. This package imports nothing, so that the processes which parse
the corpus start without loading torch.
"""
