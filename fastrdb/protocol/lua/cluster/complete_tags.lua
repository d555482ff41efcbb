-- Tags of a shard were lost, and all its entries have been deleted since: the sets are whole, unless lost once more.
-- KEYS: tags, tagged, ended, columns
-- ARGV: the member that was put into the tags before anything was deleted
-- Result: 1 if the sets are whole, 0 if not
return tags_complete(tag_keys(1), ARGV[1])
