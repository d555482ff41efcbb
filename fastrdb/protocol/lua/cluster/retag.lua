-- After a fill on a cluster: forget tags that the entry before had, unless another fill has entered more since.
-- KEYS: tags, tagged
-- ARGV: entry, the tags that it has now, its own
-- Result: 1 done, 0 not
local keys = {tags = KEYS[1], tagged = KEYS[2]}
local entry, all, own = unpack(ARGV)
if redis.call('HGET', keys.tagged, entry) ~= all then return 0 end
forget_tags(keys, entry)
put_tags(keys, entry, own)
return 1
