"""The probe job: features of frozen encoders, heads trained on them, and what is measured."""
