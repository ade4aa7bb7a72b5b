"""What plan.py reckons with: cache, working buffers and arithmetic, each by formula."""
