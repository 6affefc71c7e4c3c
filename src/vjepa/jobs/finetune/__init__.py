"""The fine-tuning job: an encoder and a classifier trained together on labelled videos."""
