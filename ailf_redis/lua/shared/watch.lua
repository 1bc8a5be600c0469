-- Which waiter watches a group, so that an arrival wakes one process and not all; loaded before the transitions in
-- which a waiter begins or ends to wait (see scripts.py).
--
-- One waiter of all processes has the watch: it blocks in XREAD on the stream and the wake-up stream. The others sleep
-- in BLPOP on a list of tokens. A fetch that leases something hands the watch over if others may sleep: it pushes the
-- token "w <waiter> <last id> <last id of the wake-up stream> <ms until the next is due or -1>", and the waiter that
-- pops it watches from there, under the name in it. "f" means: fetch now.
--
-- KEYS[10] wake    list of tokens
-- returns nothing by itself
-- writes  KEYS[10], with a TTL of `alive_ms`, at least 10 s; in KEYS[3] "watch": "<waiter> <ms until which it has the
--         watch> <ms until which other waiters may sleep>", and " lapses" if it will not have it for longer, as its
--         callers leave then
-- bound   the groups of the stream

local wake = KEYS[10]
local KEPT = 10000 -- ms, the least TTL of the tokens
local FETCHES = 2 -- the most tokens
local NOBODY = '-'
local LAPSES = ' lapses'
local FAR = 10 -- times `alive_ms`
local SHARE = 0.6 -- of `alive_ms`, for which a waiter has the watch: it fetches again before

-- Return the last id that the group has read and, if the server knows it, how many entries it has not read.
local function last_read()
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    if flat[2] == group then
      local info = map(flat)
      return info['last-delivered-id'], info.lag
    end
  end
  return '0-0'
end

-- Return where an XREAD begins that misses nothing: in the stream (nowhere while the group is paused), and in the
-- wake-up stream.
local function place(paused)
  local rung = redis.call('XREVRANGE', bell, '+', '-', 'COUNT', 1)[1]
  return paused and LAST or (last_read()), rung and rung[1] or '0-0'
end

-- Return the ms until the next member is due, or -1 if there is none, or if the group is paused.
local function next_due(paused)
  if paused then return -1 end
  local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')[2]
  return first and first ~= 'inf' and math.min(LARGEST, math.max(0, math.floor(first) - now)) or -1
end

-- Tell whether another fetch would find something now. The server's count of unread entries may be wrong, which costs a
-- fetch or a wait that ends at once; without it a body is read.
local function more_left()
  if next_due() == 0 then return true end
  local last, lag = last_read()
  if lag then return lag > 0 end
  local from = after(last)
  return from and #redis.call('XRANGE', stream, from, '+', 'COUNT', 1) > 0
end

-- Read the note: who has the watch (NOBODY if its time has passed), until when, until when others may sleep, and the
-- word of a watch that lapses. Times that are too far ahead are from before the clock was set back, or not ours.
local function read_watch(note, alive_for)
  local holder, ends, asleep, lapses = string.match(short(note), '^(%S+) (%d+) (%d+)( ?%a*)$')
  ends, asleep = tonumber(ends) or 0, tonumber(asleep) or 0
  local latest = now + FAR * alive_for
  if ends <= now or ends > latest then holder = NOBODY end
  if asleep > latest then asleep = latest end
  return holder, ends, asleep, lapses
end

local function write_watch(holder, ends, asleep, lapses)
  redis.call('HSET', notes, 'watch', holder .. ' ' .. number(ends) .. ' ' .. number(asleep) .. (lapses or ''))
end

-- Push a token. It outlives the watch that it may give: else nobody could take that while it lasts.
local function push(token, alive_for)
  redis.call('RPUSH', wake, token)
  redis.call('PEXPIRE', wake, number(math.max(KEPT, alive_for)))
end

-- Hand the watch to the waiter that has slept longest, under a new name: the former one proves nothing any more.
local function hand_over(alive_for, asleep, paused)
  local name, last, rung = number(now_us), place(paused)
  redis.call('DEL', wake) -- what no waiter has taken is out of date
  push('w ' .. name .. ' ' .. last .. ' ' .. rung .. ' ' .. number(next_due(paused)), alive_for)
  -- Consumers with a longer `takeover` sleep for longer.
  write_watch(name, now + SHARE * alive_for, math.max(asleep, now + alive_for))
end

local AGAIN, WATCHES, WATCHES_ALONE, SLEEPS = 0, 1, 2, 3

-- After a fetch, find out how its waiter goes on; return the last id, that of the wake-up stream, the ms until the next
-- is due, and one of the four words above. A process that gets something hands over even if it has callers that wait:
-- so all processes get their share.
--
-- waiter, others, waits: the last arguments of fetch.lua
-- note: the field "watch"
-- leased: how many entries the fetch leased; full: whether these were all that it may; more: whether it left some
local function go_on(waiter, others, waits, note, alive_for, leased, full, more, paused)
  local holder, ends, asleep, lapses = read_watch(note, alive_for)
  local free = holder == NOBODY or holder == waiter
  local sleepers, goes_on = asleep > now, leased <= others
  local goes_alone = goes_on and not sleepers
  if full and not more then more = not (sleepers or goes_on) or more_left() end -- a busy process alone needn't know
  if more then
    if sleepers then -- so the number of fetches under way doubles
      for _ = redis.call('LLEN', wake), FETCHES - 1 do push('f', alive_for) end
    end
    if holder == waiter then write_watch(NOBODY, 0, asleep) end
    return '', '', -1, AGAIN
  end
  if free and (leased == 0 or goes_alone) then
    local length = math.min(SHARE * alive_for, waits + (sleepers and 100 or 0))
    if holder ~= waiter then redis.call('DEL', wake) end
    local leaves = waits <= length
    local misleads = leaves and (lapses ~= LAPSES or ends > now + length) -- others would sleep on when it has left
    if holder ~= waiter or ends < now + length * 0.8 or misleads then
      write_watch(waiter, now + length, asleep, leaves and LAPSES)
    end
    local last, rung = place(paused)
    return last, rung, next_due(paused), sleepers and WATCHES or WATCHES_ALONE
  end
  if free and not sleepers then
    if holder == waiter then redis.call('HDEL', notes, 'watch') end
    if redis.call('ZCARD', alive) > 1 then return '', '', -1, AGAIN end
    local last, rung = place(paused)
    return last, rung, next_due(paused), WATCHES_ALONE
  end
  if free then
    hand_over(alive_for, asleep, paused)
  elseif asleep < now + alive_for / 2 then
    write_watch(holder, ends, now + alive_for, lapses)
  end
  return '', '', not free and lapses == LAPSES and ends - now or -1, SLEEPS
end
