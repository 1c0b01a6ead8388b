"""`hiera-video compare-pretraining`: see hiera_video/commands/compare_pretraining.py."""

from door import enter

if __name__ == "__main__":
    enter("compare-pretraining")
