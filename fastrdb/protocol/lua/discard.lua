-- Delete an entry that cannot be read, if it is still the same: of its length, and with the same bytes at some places. A
-- large entry would hold the server up if it were compared as a whole. Another entry that is taken for it costs a reload.
-- KEYS: entry
-- ARGV: length of the entry; then pieces of it, each as its place and its bytes
-- Result: 1 deleted, 0 not
if redis.call('STRLEN', KEYS[1]) ~= tonumber(ARGV[1]) then return 0 end
for i = 2, #ARGV, 2 do
  local piece = ARGV[i + 1]
  if redis.call('GETRANGE', KEYS[1], ARGV[i], ARGV[i] + #piece - 1) ~= piece then return 0 end
end
return redis.call('UNLINK', KEYS[1])
