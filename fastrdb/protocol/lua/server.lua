-- Put in front of the scripts for one server, behind what all have in front. Keys found in the index are not declared in
-- KEYS, which is fine there.

-- Members of the index that are no keys, and say where it is whole: MARK and a head, FROM and the ms from when on it is
-- so everywhere, SEARCH and the token of who is about to make it whole. An index that was lost has lost them, too.
local MARK, FROM, SEARCH = '\0', '\0\1', '\0\0'

-- Put a member into the index, with its death: the two lists are of one length at all times.
local function enter(index, expiry, name, death)
  redis.call('ZADD', index, 0, name)
  redis.call('ZADD', expiry, death, name)
end

-- Begin anew where there is nothing of the namespace's own. Then there are no entries either, unless the server may have
-- evicted all that was known of them: there the index is whole only if there is nothing at all. Where it is not allowed to
-- look, that has to be believed.
local function begin_anew(index, expiry, barriers)
  local found = evicts() ~= '' and redis.pcall('SCAN', 0, 'COUNT', 1)
  if not found or found.err or found[1] == '0' and #found[2] == 0 then enter(index, expiry, MARK, '+inf') end
  redis.call('ZADD', barriers, '+inf', NOBODY)
end

-- Is the data that of this very server, and is it a master? The first to find nothing at all makes it so.
local function at_home(server, index, expiry, barriers)
  local own, role = life()
  if not own then return true end
  if role == 'slave' then return false end
  local noted = redis.call('GET', server)
  if not noted and redis.call('EXISTS', index) == 0 then
    begin_anew(index, expiry, barriers)
    redis.call('SET', server, own)
    return true
  end
  return noted == own -- mechanism: same-server
end

-- Where the index is whole, as heads. One that was lost (evicted, deleted by hand) is so nowhere.
local function whole_heads(index)
  local heads = {}
  for _, name in ipairs(redis.call('ZRANGEBYLEX', index, '[' .. MARK, '(\1')) do
    if string.sub(name, 1, #FROM) == FROM then
      if tonumber(string.sub(name, #FROM + 1)) <= now_ms() then heads[#heads + 1] = '' end
    elseif string.sub(name, 1, #SEARCH) ~= SEARCH then
      heads[#heads + 1] = string.sub(name, #MARK + 1)
    end
  end
  return heads
end

-- The braces put the lease into its key's slot; a key with a hash tag of its own has its slot already.
local function lease_name(prefix, key)
  local open = string.find(key, '{', 1, true)
  local close = open and string.find(key, '}', open + 1, true)
  if close and close > open + 1 then return prefix .. key end
  return prefix .. '{' .. key .. '}'
end

local function delete_entry(index, expiry, key, lease)
  local deleted = redis.call('UNLINK', key) -- mechanism: sweep-deletes-entries
  redis.call('DEL', lease) -- mechanism: sweep-deletes-leases
  redis.call('ZREM', index, key)
  redis.call('ZREM', expiry, key)
  return deleted
end

local function fill(index, expiry, key, lease, token, raw, ttl_ms)
  if redis.call('GET', lease) ~= token then return 0 end -- mechanism: lease-check
  enter(index, expiry, key, ms(now_ms() + ttl_ms + SLACK_MS)) -- though a lease would have lived longer: it goes
  redis.call('SET', key, raw, 'PX', ttl_ms)
  redis.call('DEL', lease)
  return 1
end

-- Forget up to `limit` members whose time has passed and whose entry and lease are gone. Without their deaths nobody
-- would ever forget them: then the index begins anew.
local function sweep_dead(index, expiry, lease_prefix, limit)
  local now = now_ms()
  if redis.call('ZCARD', index) > redis.call('ZCARD', expiry) then redis.call('UNLINK', index, expiry) end -- mechanism: index-without-deaths
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', ms(now), 'LIMIT', 0, limit)) do
    local lease = lease_name(lease_prefix, key)
    if redis.call('EXISTS', key, lease) == 0 then
      redis.call('ZREM', index, key)
      redis.call('ZREM', expiry, key)
    else
      local life = math.max(redis.call('PTTL', key), redis.call('PTTL', lease), RECHECK_MS)
      redis.call('ZADD', expiry, ms(now + life + SLACK_MS), key)
    end
  end
end
