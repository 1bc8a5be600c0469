-- The wait queue of a lock or of a rate limiter's key; loaded before each of their transitions (see scripts.py).
--
-- A wait queue is two keys:
-- queue     sorted set: token of a waiter -> its position
-- waiters   hash: token of a waiter -> "<ms until which it counts as alive> <ms when it sends its request again by
--           itself> <turn> <channel on which it is woken>"
-- turn      -1, or how often the waiter was woken without being granted; from WAKES on, the ms until which what it
--           waits for is reserved for it: a time that has passed, or that is further off than RESERVED, reserves nothing
-- returns nothing by itself
-- writes  both keys with the longest lease of a waiter as TTL
-- A waiter whose times can't be ours counts as dead, and a position that can't be ours as none.
-- bound   one call passes at most MOST waiters that are dead or not subscribed; the next call continues behind them

-- In a cluster PUBLISH counts this node's subscribers only, so 0 doesn't mean that the waiter is gone. Such a channel
-- has a "{" before it.
local function is_cluster_channel(channel) return string.byte(channel) == 123 end

local MOST = 100
local WAKES = 3
local RESERVED = 1000

-- Read the stored text of a waiter: ms until which it counts as alive, ms when it retries by itself, its channel, its
-- turn; nil for a dead one.
local function read_waiter(stored)
  local alive, retries, turn, channel = string.match(stored, '^(%d+) (%d+) (%-?%d+) (.*)$')
  alive, retries = tonumber(alive), tonumber(retries)
  if alive and alive > now and alive <= LARGEST and retries <= LARGEST then
    return alive, retries, channel, tonumber(turn)
  end
end

-- Return the text of a waiter.
local function waiter_text(alive, retries, channel, turn)
  return number(alive) .. ' ' .. number(retries) .. ' ' .. number(turn) .. ' ' .. channel
end

-- Return until when a turn reserves what its waiter waits for; nil if it reserves nothing.
local function reserved_until(turn) return turn > now and turn <= now + RESERVED and turn or nil end

-- The methods of a wait queue. They are made at the first use: most calls find no waiters.
local function make_methods()
  local function leave(self, token)
    redis.call('ZREM', self.queue, token)
    redis.call('HDEL', self.waiters, token)
  end

  -- Return a waiter as `read_waiter` does; remove a dead one and return nil.
  local function waiter(self, token)
    local alive, retries, channel, turn = read_waiter(redis.call('HGET', self.waiters, token) or '')
    if alive then return alive, retries, channel, turn end
    leave(self, token)
    return nil
  end

  -- Return the first waiter that is alive: its token, until when, when it retries by itself, and until when what it
  -- waits for is reserved, if it is. After MOST dead ones the next one counts as alive for a millisecond.
  local function first_alive(self)
    for n = 1, MOST + 1 do
      local token = redis.call('ZRANGE', self.queue, 0, 0)[1]
      if not token then return nil end
      if n > MOST then return token, now + 1, now + 1 end
      local alive, retries, _, turn = waiter(self, token)
      if alive then return token, alive, retries, reserved_until(turn) end
    end
  end

  -- Publish to a waiter; return whether it may have received that. If it didn't after all, those behind it retry by
  -- themselves when its lease ends. Another program's waiter may name a channel where we have no right to publish: it
  -- counts as not subscribed, as releasing a lock mustn't fail.
  local function notify(channel, token)
    local cluster = is_cluster_channel(channel)
    local receivers = redis.pcall('PUBLISH', cluster and string.sub(channel, 2) or channel, token)
    return type(receivers) == 'number' and (cluster or receivers > 0)
  end

  -- Count that a waiter was woken. The last time that counts is the end of its reservation.
  local function count_wake(self, token, alive, retries, channel, turn)
    if turn < 0 or turn >= WAKES then return end
    turn = turn + 1 < WAKES and turn + 1 or now + RESERVED
    redis.call('HSET', self.waiters, token, waiter_text(alive, retries, channel, turn))
  end

  -- Wake the first waiter, or the first behind the token `after`; the next one if that one isn't subscribed. With
  -- `ends` (ms) do nothing if it retries by then anyway. Behind MOST that aren't subscribed all retry by themselves.
  local function wake(self, after, ends)
    local rank = after and redis.call('ZRANK', self.queue, after) or -1
    for _ = 1, MOST do
      rank = rank + 1
      local token = redis.call('ZRANGE', self.queue, rank, rank)[1]
      if not token then return end
      local alive, retries, channel, turn = waiter(self, token)
      if not alive then
        rank = rank - 1
      elseif ends and retries <= ends then
        return
      elseif notify(channel, token) then
        if not ends then count_wake(self, token, alive, retries, channel, turn) end
        return
      end
    end
  end

  -- Wake the first waiter if something ends before it would retry by itself: it then learns the earlier time.
  local function wake_if_earlier(self, ends) wake(self, nil, ends) end

  -- Add a waiter at the end; one that is in the queue keeps its position, and its turn, unless that is over. Its lease
  -- begins anew. With `counts` its wake-ups count. One that came from another queue keeps the position `since`.
  local function enqueue(self, token, lease, retries, channel, counts, since)
    local turn = counts and 0 or -1
    if redis.call('ZSCORE', self.queue, token) then
      local _, _, _, kept = read_waiter(redis.call('HGET', self.waiters, token) or '')
      if counts and kept and (kept < WAKES or reserved_until(kept)) then turn = kept end
    elseif since then
      redis.call('ZADD', self.queue, since, token)
    else
      local largest = '(' .. number(LARGEST)
      local last = redis.call('ZREVRANGEBYSCORE', self.queue, largest, 0, 'WITHSCORES', 'LIMIT', 0, 1)[2]
      redis.call('ZADD', self.queue, number(math.max(now_us, (last or 0) + 1)), token)
    end
    retries = math.min(retries, LARGEST)
    redis.call('HSET', self.waiters, token, waiter_text(now + lease, retries, channel, turn))
    local longest = number(math.min(math.max(lease, redis.call('PTTL', self.waiters)), LARGEST))
    redis.call('PEXPIRE', self.queue, longest)
    redis.call('PEXPIRE', self.waiters, longest)
  end

  return { leave = leave, waiter = waiter, first_alive = first_alive, wake = wake, wake_if_earlier = wake_if_earlier,
    enqueue = enqueue }
end

local methods

local function queue_at(queue, waiters)
  methods = methods or { __index = make_methods() }
  return setmetatable({ queue = queue, waiters = waiters }, methods)
end

-- Return the wait queue, or nil if it is empty.
local function queue_if_any(queue, waiters)
  return redis.call('ZCARD', queue) > 0 and queue_at(queue, waiters) or nil
end
