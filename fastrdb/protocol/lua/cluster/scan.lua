-- Look at some of the names of the strings that one server of a cluster has, in whatever slot.
-- KEYS: any key, by which the server is found
-- ARGV: cursor, how many keys, then what names begin with: any of these
-- Result: {next cursor, replication id of the server, names found}
local found = {}
local reply = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2], 'TYPE', 'string')
for _, key in ipairs(reply[2]) do
  for i = 3, #ARGV do
    if begins(key, ARGV[i]) then -- mechanism: search-finds-names
      found[#found + 1] = key
      break
    end
  end
end
return {reply[1], replication_id() or '', found}
