"""`hiera-video visualize-mae`: see hiera_video/commands/visualize_mae.py."""

from door import enter

if __name__ == "__main__":
    enter("visualize-mae")
