"""What training reads: data sets as splits, batches of uint8 clips, augmentation and views.

Never imports a model. Data sets are prepared by vivit.dataprep, which training never imports.
"""
