"""What a pattern means: groups, combinations, masks, scores, elimination, schedules, zeros."""
