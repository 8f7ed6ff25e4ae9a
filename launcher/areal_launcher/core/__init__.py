"""What a run on machines of ours starts, watches, replaces and reports, whatever place it runs in."""
