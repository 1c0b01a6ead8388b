"""Charts, pages, reconstructions and timelines: what is drawn for people to look at."""
