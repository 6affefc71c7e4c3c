"""Tables, plots, pictures and self-contained HTML reports: plain results in, files out."""
