-- Before a fill on a cluster: enter an entry under its tags, unless a writer has reached one of these since the grant. A
-- writer that begins from now on finds the entry, and the lease with it. Tags of an entry that is there stay: `retag`.
-- KEYS: barriers, tags, tagged, ended, columns, index, expiry
-- ARGV: namespace with its colon, entry, moment of the grant, its tags, one a line
-- Result: '' entered, or the tag that a writer has reached ('\0': that is unknown); then the tags that it has now
local barriers, keys = KEYS[1], tag_keys(2)
local before, entry, since, tags = unpack(ARGV)
local why = touched(keys, barriers, before, tags, tonumber(since)) -- mechanism: shard-checks-tags
if why then return {why, ''} end
local known = redis.call('HGET', keys.tagged, entry)
local all = tags
for tag in string.gmatch(known or '', TAGGED_LIST) do
  if not string.find('\n' .. all .. '\n', '\n' .. tag .. '\n', 1, true) then all = all .. '\n' .. tag end
end
put_tags(keys, entry, all)
check_any(keys, KEYS[6], KEYS[7])
return {'', all}
