"""Other programs' layouts of weights: names, configurations and folders, read into ours and written from ours."""
