"""`hiera-video combine-scores`: see hiera_video/commands/combine_scores.py."""

from door import enter

if __name__ == "__main__":
    enter("combine-scores")
