-- Put in front of every script. Nothing here touches a key unless its name says so.
-- Keys found in the index are not declared in KEYS: fine on one server. For a cluster there are other scripts.

local SLACK_MS = 1000 -- an index member outlives what it stands for
local RECHECK_MS = 60000 -- a member that outlived its score (PERSIST by hand) is looked at again after this
local TOKEN_BYTES = 32 -- a barrier is: token, head, newline, filter

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function ms(number)
  return string.format('%.0f', number)
end

-- What tells one life of a server's data from every other: the replication id, which is a new one with each start and
-- with each promotion. (The run_id stays: a master that is demoted and promoted again has another's data by then.)
-- Also gives the role. nil and the reason where an ACL denies it.
local function life()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' then return nil, info.err or 'INFO' end
  local id = string.match(info, 'master_replid:(%w+)')
  if not id then
    local server = redis.pcall('INFO', 'server')
    id = type(server) == 'string' and string.match(server, 'run_id:(%w+)') or nil
  end
  return id, id and string.match(info, 'role:(%w+)') or 'neither master_replid nor run_id in INFO'
end

-- Is the data that of this very server, and is it a master? The first to find nothing at all makes it so.
local function at_home(server, index)
  local own, role = life()
  if not own then return true end
  if role == 'slave' then return false end
  local noted = redis.call('GET', server)
  if not noted and redis.call('EXISTS', index) == 0 then
    redis.call('SET', server, own)
    return true
  end
  return noted == own
end

-- The braces put the lease into its key's slot; a key with a hash tag of its own has its slot already.
local function lease_name(prefix, key)
  local open = string.find(key, '{', 1, true)
  local close = open and string.find(key, '}', open + 1, true)
  if close and close > open + 1 then return prefix .. key end
  return prefix .. '{' .. key .. '}'
end

-- Does `filter` let `key` through? '' lets all, '=' only the head itself, else one of its lines must be found: Lua
-- patterns over the whole key. A pattern that Lua refuses lets all through: more is invalidated, never less.
local function reaches(head, filter, key)
  if string.sub(key, 1, #head) ~= head then return false end
  if filter == '' then return true end
  if filter == '=' then return #key == #head end
  for pattern in string.gmatch(filter, '[^\n]+') do
    local fine, found = pcall(string.find, key, pattern)
    if found or not fine then return true end
  end
  return false
end

-- The entry that answers who asks for its lease. `old` says which does not: '' any does, '*' none does, else one that has
-- at most so many ms left to live.
local function answer(entry, old)
  local raw = old ~= '*' and redis.call('GET', entry)
  if not raw or old == '' then return raw end
  local left = redis.call('PTTL', entry)
  return (left < 0 or left > tonumber(old)) and raw
end

local function barred(barriers, key)
  for _, barrier in ipairs(redis.call('ZRANGEBYSCORE', barriers, '(' .. ms(now_ms()), '+inf')) do
    local newline = string.find(barrier, '\n', TOKEN_BYTES + 1, true)
    if not newline then return true end
    local head = string.sub(barrier, TOKEN_BYTES + 1, newline - 1)
    if reaches(head, string.sub(barrier, newline + 1), key) then return true end
  end
  return false
end

-- Always before the lease or the entry is written: should the server stop in between, the index has one key too many.
local function put_in_index(index, expiry, key, life_ms)
  redis.call('ZADD', index, 0, key)
  redis.call('ZADD', expiry, 'GT', ms(now_ms() + life_ms + SLACK_MS), key)
end

local function delete_entry(index, expiry, key, lease)
  local deleted = redis.call('UNLINK', key)
  redis.call('DEL', lease)
  redis.call('ZREM', index, key)
  redis.call('ZREM', expiry, key)
  return deleted
end

local function fill(index, expiry, key, lease, token, raw, ttl_ms)
  if redis.call('GET', lease) ~= token then return 0 end
  put_in_index(index, expiry, key, tonumber(ttl_ms))
  redis.call('SET', key, raw, 'PX', ttl_ms)
  redis.call('DEL', lease)
  return 1
end

-- Forget up to `limit` members whose time has passed and whose entry and lease are gone.
local function sweep_dead(index, expiry, lease_prefix, limit)
  local now = now_ms()
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
