-- The server's time, read once per script; loaded before each transition that needs the time (see scripts.py).
--
-- returns nothing by itself
-- writes  nothing

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- The largest time, count or fence. A double can't hold every integer beyond it, so a loop over them might never end. A
-- larger stored number isn't ours.
local LARGEST = 9007199254740992

-- Write an integer as text. Lua's own conversion rounds an integer of more than 14 digits.
local function number(n) return string.format('%.0f', n) end
