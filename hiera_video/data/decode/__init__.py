"""From a video file to frames: packets, readers, the process that can be killed, quarantine."""
