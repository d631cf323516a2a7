"""The training loop, written once: what a stage is, how it runs, stops, goes on and is judged."""
