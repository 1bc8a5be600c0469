-- What the transitions of rate limiters share; it stands before the text of each of them, after wait_queue.lua and before the
-- arithmetic of the kinds: token_bucket.lua, fixed_window.lua, sliding_window.lua and concurrency.lua.
--
-- KEYS[1] states   text: "<id>:<numbers>;" for each limit that was charged: the state as ailf/limits has it
-- KEYS[2] queue, KEYS[3] waiters   see wait_queue.lua
-- KEYS[4…] slots   of each limit of concurrency, in their order: see concurrency.lua
-- ARGV             of each transition its own; a limit comes as five: kind, id, three parameters
-- returns nothing by itself
-- writes  KEYS[1] with the time until it is as good as fresh as TTL, and a margin
--
-- The arithmetic is that of ailf/limits, where it is explained, to the bit; here no sum may exceed LARGEST, so
-- what is subtracted comes first. A limit is a table with the methods of its kind, which is b (token_bucket.lua), f (fixed_window.lua),
-- s (sliding_window.lua) or c (concurrency.lua):
--   load(id, entry, …)    a new one, of what is stored of it, if something is, and its three parameters; a fresh one
--                         where what is stored can't be ours
--   wait(cost)            after how many ms it passes: 0 for now, nil for never
--   charge(cost, token)   charge it, whether it fits or not; the two numbers that it is remembered by
--   remaining(), ends()   the largest cost that passes now; the time from which it is as good as fresh, 0 for a fresh one
--   settle(cost, actual, one, two, token)   let a charge be as though it had been another; whether the state changed
--   observe(remaining, reset, pause)        let no more pass than this; whether the state changed
--   text()                the numbers of its state; not of concurrency, whose state isn't in KEYS[1]
--   drop(token)           give back what somebody has; of concurrency alone
-- and with capacity, the largest cost that can ever pass; where it has a text: id, entry (what is stored of it, if
-- something is), changed (whether that is to be stored anew).
-- bound   the limits at hand

local MARGIN = 1000
local EACH = 5
local QUEUE, WAITERS = KEYS[2], KEYS[3]
local max, min, floor, ceil = math.max, math.min, math.floor, math.ceil
local stored = redis.call('GET', KEYS[1]) or ''
local foreign = #stored -- how much of it is of other limits than those at hand
local loaded = {} -- those at hand that have an id
local makers, kinds = {}, {} -- of each kind what makes its methods, and the methods of those that are wanted

local function limit_at(first)
  local kind, id = ARGV[first], ARGV[first + 1]
  local methods = kinds[kind]
  if not methods then
    methods = { __index = makers[kind]() }
    kinds[kind] = methods
  end
  local from, colon = string.find(stored, id .. ':', 1, true)
  local entry = from and string.sub(stored, from, string.find(stored, ';', colon, true))
  if entry then foreign = foreign - #entry end
  local limit = methods.__index.load(id, entry, ARGV[first + 2] + 0, ARGV[first + 3] + 0, ARGV[first + 4] + 0)
  if limit.id then loaded[#loaded + 1] = limit end
  return setmetatable(limit, methods)
end

-- Keep the states of the limits at hand, beside those of others, with the longest time that one of them is needed for.
local function store()
  local kept, ends = '', 0
  for _, limit in ipairs(loaded) do
    if foreign > 0 and limit.entry then
      local from, to = string.find(stored, limit.entry, 1, true)
      if from then stored = string.sub(stored, 1, from - 1) .. string.sub(stored, to + 1) end -- or it was within another
    end
    ends = max(ends, limit:ends())
    kept = kept .. (limit.changed and limit.id .. ':' .. limit:text() .. ';' or limit.entry or '')
  end
  if foreign > 0 then kept = kept .. stored end -- ours first: what is stored of the same id behind it counts for nothing
  local left = max(1, ends - now + MARGIN, redis.call('PTTL', KEYS[1])) -- others may know of it for longer
  left = number(min(left, LARGEST))
  if kept ~= '' then redis.call('SET', KEYS[1], kept, 'PX', left) end
end
