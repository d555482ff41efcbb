-- Read an entry inside of a load, with its tags: what the load stores depends on them, too.
-- KEYS: entry, index
-- ARGV: none
-- Result: {raw or false, what is left of its life in ms, tags, one a line, or false}
local entry, index = unpack(KEYS)
return {redis.call('GET', entry), redis.call('PTTL', entry), redis.call('HGET', tag_keys(index).tagged, entry)}
