-- Look at some of the keys that one server of a cluster has: at their names only, for they lie in any slot.
-- KEYS: any, by which the server is found
-- ARGV: cursor, how many keys, then what names begin with: any of these
-- Result: {next cursor, history of the server, names of the strings among those found}
local heads = {}
for i = 3, #ARGV do heads[#heads + 1] = ARGV[i] end
local found = {}
local reply = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2], 'TYPE', 'string')
for _, key in ipairs(reply[2]) do
  if begins(key, heads) then found[#found + 1] = key end -- mechanism: search-finds-names
end
return {reply[1], history() or '', found}
