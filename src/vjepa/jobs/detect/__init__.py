"""The detection job: what each person does in a video, and where."""
