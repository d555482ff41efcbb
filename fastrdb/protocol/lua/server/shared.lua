-- Put in front of the scripts for one server, behind tags.lua. Keys found in the index are not declared in KEYS, which
-- one server allows.

-- Index members that are no keys: COMPLETE and a head; COMPLETE_FROM and the ms from when on the index is complete
-- everywhere; SEARCHING and the token of a running search. An index that was lost has lost them, too.
local COMPLETE_FROM, SEARCHING = '\0\1', '\0\0'

-- Add a member with its time of death. Index and expiry have the same members at all times.
local function enter(index, expiry, name, death)
  redis.call('ZADD', index, 0, name)
  redis.call('ZADD', expiry, death, name)
end

-- Is there no string that begins with `before` and expires, and so may be an entry? Scans a hundred keys; a server with
-- more counts as one that has entries. Where an ACL denies SCAN, the answer is yes.
local function has_no_entries(before)
  local reply = redis.pcall('SCAN', 0, 'COUNT', 100, 'TYPE', 'string', 'MATCH', before .. '*')
  if reply.err then return true end
  if reply[1] ~= '0' then return false end
  for _, key in ipairs(reply[2]) do
    if redis.call('PTTL', key) > 0 then return false end
  end
  return true
end

-- Is the data this server's own, and is the server a master? If nothing of the namespace is there, a new life begins:
-- the index is complete if there are no entries, and barriers cannot have been lost unless the server evicts.
local function is_trusted(index, expiry, barriers, trusted, before)
  local id, role = replication_id()
  if not id then return true end
  if role == 'slave' then return false end -- mechanism: replica-refused
  if redis.call('ZSCORE', trusted, id) then return true end
  if redis.call('EXISTS', trusted, index) > 0 then return false end -- mechanism: same-server
  if has_no_entries(before) then enter(index, expiry, COMPLETE, '+inf') end
  if not evicts_index() then redis.call('ZADD', barriers, '+inf', NO_BARRIER) end
  redis.call('ZADD', trusted, 0, id)
  return true
end

-- Does the index have every key that begins with `head`?
local marks -- of the index, read once in a script; where there are more, those behind do not count
local function is_complete(index, head)
  marks = marks or redis.call('ZRANGEBYLEX', index, '[' .. COMPLETE, '(\1', 'LIMIT', 0, 128)
  for _, name in ipairs(marks) do
    if begins(name, COMPLETE_FROM) then
      if tonumber(string.sub(name, #COMPLETE_FROM + 1)) <= now_ms() then return true end
    elseif not begins(name, SEARCHING) and begins(head, string.sub(name, #COMPLETE + 1)) then
      return true
    end
  end
  return false
end

-- The braces put a lease into its key's slot; a key with a hash tag of its own needs none.
local function lease_name(prefix, key)
  local open = string.find(key, '{', 1, true)
  local close = open and string.find(key, '}', open + 1, true)
  if close and close > open + 1 then return prefix .. key end
  return prefix .. '{' .. key .. '}'
end

-- The keys of tags lie beside the index.
local known_tag_keys
local function tag_keys(index)
  local head = string.sub(index, 1, -#'index' - 1)
  known_tag_keys = known_tag_keys
    or {tags = head .. 'tags', tagged = head .. 'tagged', ended = head .. 'ended', columns = head .. 'columns'}
  return known_tag_keys
end

local function forget(index, key)
  forget_tags(tag_keys(index), key) -- mechanism: tags-forgotten
end

-- Delete entries with their leases, so many in one command: a command costs more than what it deletes.
local AT_ONCE = 1000
local function delete_entries(index, expiry, keys, lease_prefix)
  local deleted = 0
  for from = 1, #keys, AT_ONCE do
    local to, leases = math.min(from + AT_ONCE - 1, #keys), {}
    for i = from, to do leases[#leases + 1] = lease_name(lease_prefix, keys[i]) end
    deleted = deleted + redis.call('UNLINK', unpack(keys, from, to)) -- mechanism: sweep-deletes-entries
    redis.call('DEL', unpack(leases)) -- mechanism: sweep-deletes-leases
    redis.call('ZREM', index, unpack(keys, from, to))
    redis.call('ZREM', expiry, unpack(keys, from, to))
    for i = from, to do forget(index, keys[i]) end
  end
  return deleted
end

local function fill(index, expiry, key, lease, held, raw, ttl_ms, tags)
  if not may_fill(lease, held) then return 0 end -- mechanism: lease-check
  enter(index, expiry, key, ms(now_ms() + ttl_ms + SLACK_MS)) -- lowers the score of a lease that would live longer
  if tags then
    forget(index, key)
    put_tags(tag_keys(index), key, tags)
    check_any(tag_keys(index), index, expiry)
  end
  redis.call('SET', key, raw, 'PX', ttl_ms)
  redis.call('DEL', lease)
  return 1
end

-- Remove up to `limit` members whose time has passed and whose entry and lease are gone. If expiry has lost members,
-- their index members would stay for ever: then the index begins anew.
local function remove_dead(index, expiry, lease_prefix, limit)
  local now = now_ms()
  if redis.call('ZCARD', index) > redis.call('ZCARD', expiry) then redis.call('UNLINK', index, expiry) end -- mechanism: index-without-deaths
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', ms(now), 'LIMIT', 0, limit)) do
    local lease = lease_name(lease_prefix, key)
    if redis.call('EXISTS', key, lease) == 0 then
      redis.call('ZREM', index, key)
      redis.call('ZREM', expiry, key)
      forget(index, key)
    else
      local life = math.max(redis.call('PTTL', key), redis.call('PTTL', lease), RECHECK_MS)
      redis.call('ZADD', expiry, ms(now + life + SLACK_MS), key)
    end
  end
end
