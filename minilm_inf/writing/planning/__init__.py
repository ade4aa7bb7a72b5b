"""What plan reckons with: cache, working buffers and arithmetic, each by formula."""
