"""python -m vivit.data: from video files and annotations to data sets that training reads."""
