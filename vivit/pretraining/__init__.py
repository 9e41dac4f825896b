"""Pre-training without labels: masks, and what is learned from clips whose tokens are hidden."""
