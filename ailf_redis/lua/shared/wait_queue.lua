-- A line of waiters, for locks and rate limiters; it stands before the text of each of their transitions.
--
-- A line is two keys:
-- queue     sorted set: token of a waiter -> its place in line
-- waiters   hash: token of a waiter -> "<ms until which it counts as alive> <ms when it looks again by itself>
--           <channel where it is woken>"
-- returns nothing by itself
-- writes  both with the longest lease of a waiter as TTL
-- A waiter whose times can't be ours counts as dead, and a place that can't be ours as none.
-- bound   one look passes at most MOST waiters that have died or don't hear; the next look goes on with those behind them

-- Whether nobody can know who hears a channel: a node of a cluster counts its own listeners only. The channel of who
-- waits in a cluster has a "{" before it.
local function deaf(channel) return string.byte(channel) == 123 end

local MOST = 100

-- What is stored of a waiter that lives: ms until which it counts as alive, ms when it looks again, its channel.
local function living(known)
  local alive, looks, channel = string.match(known, '^(%d+) (%d+) (.*)$')
  alive, looks = tonumber(alive), tonumber(looks)
  if alive and alive > now and alive <= LARGEST and looks <= LARGEST then return alive, looks, channel end
end

-- What can be done with a line. It is made when the first one is wanted: most calls find nobody waiting.
local function line_methods()
  local function leave(line, token)
    redis.call('ZREM', line.queue, token)
    redis.call('HDEL', line.waiters, token)
  end

  -- A waiter: ms until which it counts as alive, ms when it looks again, its channel; nil, and out of the line, when
  -- that is over.
  local function waiter(line, token)
    local alive, looks, channel = living(redis.call('HGET', line.waiters, token) or '')
    if alive then return alive, looks, channel end
    leave(line, token)
    return nil
  end

  -- The first in line that lives: its token, until when, and when it looks again. Behind MOST that have died, the next
  -- one counts as alive for a millisecond.
  local function head(line)
    for looked = 1, MOST + 1 do
      local token = redis.call('ZRANGE', line.queue, 0, 0)[1]
      if not token then return nil end
      if looked > MOST then return token, now + 1, now + 1 end
      local alive, looks = waiter(line, token)
      if alive then return token, alive, looks end
    end
  end

  -- Tell a waiter that it is its turn; whether it heard. One that may have heard counts as if it had: those behind it
  -- look again by themselves when its place ends. One of another program may name a channel where we have no right to
  -- publish: it doesn't hear, and what frees the lock mustn't fail.
  local function tell(channel, token)
    local silent = deaf(channel)
    local heard = redis.pcall('PUBLISH', silent and string.sub(channel, 2) or channel, token)
    return type(heard) == 'number' and (silent or heard > 0)
  end

  -- Wake the first in line, after a token if that is given, and if a time is given only one that would look again after
  -- it; and the next one where nobody hears it. Behind MOST of these, everybody looks again by itself.
  local function wake(line, after, before)
    local place = after and redis.call('ZRANK', line.queue, after) or -1
    for _ = 1, MOST do
      place = place + 1
      local token = redis.call('ZRANGE', line.queue, place, place)[1]
      if not token then return end
      local alive, looks, channel = waiter(line, token)
      if not alive then
        place = place - 1
      elseif before and looks <= before or tell(channel, token) then
        return
      end
    end
  end

  -- Put a token at the end of a line, or let it keep its place.
  local function stand(line, token, lease, looks, channel)
    if not redis.call('ZSCORE', line.queue, token) then
      local last = redis.call('ZREVRANGEBYSCORE', line.queue, '(' .. number(LARGEST), 0, 'WITHSCORES', 'LIMIT', 0, 1)[2]
      redis.call('ZADD', line.queue, number(math.max(now_us, (last or 0) + 1)), token)
    end
    looks = math.min(looks, LARGEST)
    redis.call('HSET', line.waiters, token, number(now + lease) .. ' ' .. number(looks) .. ' ' .. channel)
    local longest = number(math.min(math.max(lease, redis.call('PTTL', line.waiters)), LARGEST))
    redis.call('PEXPIRE', line.queue, longest)
    redis.call('PEXPIRE', line.waiters, longest)
  end

  return { leave = leave, waiter = waiter, head = head, wake = wake, stand = stand }
end

local methods

local function line_of(queue, waiters)
  methods = methods or { __index = line_methods() }
  return setmetatable({ queue = queue, waiters = waiters }, methods)
end

-- The line, if somebody stands in it.
local function crowd(queue, waiters)
  return redis.call('ZCARD', queue) > 0 and line_of(queue, waiters) or nil
end
