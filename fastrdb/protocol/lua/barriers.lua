-- Put in front of the scripts of the protocol, behind matching.lua: the barriers of writers.

local TOKEN_BYTES = 32 -- a barrier is: token, head, newline, filter
local NO_BARRIER = string.rep('0', TOKEN_BYTES) .. '\0\n' -- covers no key; where it is missing, barriers were lost
local KEEP = string.rep('0', TOKEN_BYTES) .. '\0keep\n' -- its score: so long (ms, below zero) lapsed ones are kept
local MOST_LOOKS = 2048 -- so many barriers one script reads: with more, its keys count as barred

local looks_left = MOST_LOOKS

-- Does a barrier cover the key? Second result: have barriers been lost?
local function barred(barriers, key)
  local lost = true
  local standing = redis.call('ZRANGEBYSCORE', barriers, '(' .. ms(now_ms()), '+inf', 'LIMIT', 0, looks_left + 1)
  looks_left = looks_left - #standing
  if looks_left < 0 then -- mechanism: looks-bounded
    looks_left = 0
    return true
  end
  for _, barrier in ipairs(standing) do
    if barrier == NO_BARRIER then lost = false end
    local newline = string.find(barrier, '\n', TOKEN_BYTES + 1, true)
    if not newline then return true end
    local head = string.sub(barrier, TOKEN_BYTES + 1, newline - 1)
    if reaches(head, string.sub(barrier, newline + 1), key) then return true end
  end
  return false, lost
end

-- Remove some members whose score, a moment, has passed: more than are added, so that the set does not grow.
local function forget_before(set, now, most)
  local over = redis.call('ZRANGEBYSCORE', set, 0, ms(now), 'LIMIT', 0, most)
  if #over > 0 then redis.call('ZREM', set, unpack(over)) end
end

-- A full server refuses a command that may need memory, unless the script has written before. A commit must be noted all
-- the same, so a command that needs none comes first.
local function insist(set) redis.call('ZREM', set, '') end

local function set_barriers(barriers, barrier_ms, first, last)
  if first > last then return end
  insist(barriers)
  local now = now_ms()
  -- A load that began before a barrier lapsed may still be under way: for tags, its fill reads lapsed barriers.
  local kept = redis.call('ZSCORE', barriers, KEEP) or 0
  forget_before(barriers, now + kept, 2 * (last - first + 1)) -- mechanism: lapsed-barriers-kept
  for i = first, last do
    redis.call('ZADD', barriers, 'GT', ms(now + barrier_ms), ARGV[i]) -- mechanism: barrier-set
  end
end

-- Returns whether all of them stood until now. If one did not, it may have stood for too short.
local function remove_barriers(barriers, first, last)
  local stood, now = true, now_ms()
  for i = first, last do
    local deadline = redis.call('ZSCORE', barriers, ARGV[i])
    stood = stood and deadline and tonumber(deadline) > now -- mechanism: barriers-stood
    redis.call('ZREM', barriers, ARGV[i]) -- mechanism: barriers-distinguished
  end
  return stood
end

-- Which barriers there were is unknown: bar all keys for as long as the last of them would have stood.
local function bar_all(barriers, barrier_ms)
  redis.call('ZADD', barriers, '+inf', NO_BARRIER)
  redis.call('ZADD', barriers, 'GT', ms(now_ms() + barrier_ms), string.rep('0', TOKEN_BYTES) .. '\n')
end
