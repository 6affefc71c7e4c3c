"""What every job needs around its work: device, threads, seeds, logs, metrics, progress.

The modules are imported one by one (``vjepa.runtime.process`` must be usable before torch is).
"""
