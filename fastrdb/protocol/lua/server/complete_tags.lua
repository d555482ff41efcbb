-- Tags were lost, and all entries have been deleted since: the sets of tags are whole, unless lost again.
-- KEYS: index
-- ARGV: token of the writer that began the sets anew
-- Result: 1 if the sets are whole, 0 if not
return tags_complete(tag_keys(KEYS[1]), SEARCHING .. ARGV[1])
