-- Judges what a request asks by its limits as they stand, and holds all of it or nothing; or only looks at them.
-- numbers: from the seventh on: mode (0: look, 1: hold, 2: hold whatever the limits say); how many numbers follow,
--          wants [feature, quantity]; limits [subject (1: tenant, 2: key, 3: user), feature, start, end, hard, ceiling,
--          quantity wanted]
-- beside:  id; the hold as it is kept, without its instant; names of key's and user's subjects ('k:…' or '', 'u:…');
--          names of the limits' features (MessagePack)
-- It answers numbers: 1 (held), 2 (over) or 3 (seen); now; holds of requests and reservations reaped; 0; 0; how long
-- the tenant's list and the key's are; the lists of tenant, key and user as they were before this hold.

local ID, KEY, USER = ARGV[4], ARGV[6], ARGV[7]
local LOOK, FORCE = 0, 2
local HELD, OVER, SEEN = 1, 2, 3
local mode, wants_end, asked = q[7], 8 + q[8], #q

if mode ~= LOOK and q[3] < 0 then
  for l = wants_end + 1, asked, 7 do
    if now < q[l + 2] or q[l + 3] <= now then return cmsgpack.pack({ status = 'time', now = now }) end
  end
end

local reaped, expired, is_tended = 0, 0, false

-- What is rare: opens the tenant, does what is due, puts new counters in place. An answer, if the call can't go on.
-- With `deadline`, what is asked is held where a sum comes to the end of the scale.
local function tended(deadline)
  --- common ---
  open_tenant()
  if deadline then
    open_hold(ID, struct.pack('<d', now) .. ARGV[5], deadline)
    return save_subjects()
  end
  reaped, expired = tend()
  local names, feature_names, missing = { 't', KEY, USER }, cmsgpack.unpack(ARGV[8]), {}
  for l = wants_end + 1, asked, 7 do
    local name, feature, first, last, hard = names[q[l]], q[l + 1], q[l + 2], q[l + 3], q[l + 4]
    if not find(name, feature, first, last) then
      local place = (l - wants_end - 1) / 7
      if first > tenant[LATEST] then
        -- It holds nothing but what will still come by.
        add_counter(name, feature, feature_names[place + 1], first, last, 0, hard)
      else
        missing[#missing + 1] = place
      end
    end
  end
  for n = 2, 3 do
    local list = names[n] ~= '' and subject(names[n])
    if list and #list >= FIRST and now >= list[DUE] then changed[names[n]] = true end
  end
  save_subjects()
  is_tended = true
  if #missing > 0 then
    return answer({
      status = 'load', reaped = reaped, expired = expired, missing = missing,
      inc = tenant[INC], drains = tenant[DRAINS], draining = draining(),
    })
  end
end

local raws, lists, names, is_changed

-- Reads tenant, key and user as far as they have counters. Whether all is in order.
local function look_up()
  local raw = call('HGET', ROOT, '')
  if not raw then return false end
  local list = read(raw, 1, #raw / 8)
  if list[1] ~= q[1] or now >= list[DUE] and not is_tended then return false end
  raws, lists = { raw, '', '' }, { list }
  local scopes = list[SCOPES]
  if scopes == 0 then return true end
  names = { '', KEY, USER }
  for s = 2, 3 do
    if (s == 3 and scopes >= 2 or s == 2 and scopes % 2 == 1 and KEY ~= '') then
      raw = call('GET', ROOT .. names[s])
      local of = raw and read(raw, 1, #raw / 8)
      if of and of[INC] == list[INC] then
        if now >= of[DUE] and not is_tended then return false end
        raws[s], lists[s] = raw, of
      end
    end
  end
  return true
end

-- Judges by what was looked up. Nil if a counter is missing.
local function judged()
  local fits, expected = true, FIRST
  for l = wants_end + 1, asked, 7 do
    local list, feature, first, last = lists[q[l]], q[l + 1], q[l + 2], q[l + 3]
    if not list then return nil end
    local c = expected
    if list[c] ~= feature or list[c + 1] ~= first or list[c + 2] ~= last then
      c = FIRST
      while list[c] and (list[c] ~= feature or list[c + 1] ~= first or list[c + 2] ~= last) do c = c + STRIDE end
      if not list[c] then return nil end
    end
    expected = c + STRIDE
    if list[c + 5] ~= q[l + 4] then list[c + 5], is_changed = q[l + 4], true end
    local ceiling, wanted = q[l + 5], q[l + 6]
    if ceiling >= 0 and wanted > 0 then
      local taken = list[c + 3] + list[c + 4] + wanted
      if taken > ceiling and ceiling < MAX then fits = false end
    end
  end
  return fits
end

local fits
if look_up() then fits = judged() end
if fits == nil then
  local stop = tended()
  if stop then return stop end
  look_up()
  fits = judged()
end

local function save(id, hold)
  if hold then call('HSET', ROOT, '', written(lists[1]), id, hold) else call('HSET', ROOT, '', written(lists[1])) end
  for s = 2, 3 do
    if lists[s] then call('SET', ROOT .. names[s], written(lists[s]), 'KEEPTTL') end
  end
end

local status = OVER
if mode == LOOK then
  status = SEEN
elseif fits or mode == FORCE then
  status = HELD
  local deadline, has_room = now + q[6], true
  for s = 1, 3 do
    local list = lists[s]
    for c = FIRST, list and #list or 0, STRIDE do
      if list[c + 1] <= now and now < list[c + 2] then
        for w = 9, wants_end, 2 do
          if q[w] == list[c] then
            list[c + 4] = list[c + 4] + q[w + 1]
            if list[c + 4] > MAX then has_room = false end
          end
        end
      end
    end
  end
  if has_room then
    if deadline < lists[1][DUE] then lists[1][DUE] = deadline end
    save(ID, struct.pack('<d', now) .. ARGV[5])
    call('ZADD', ROOT .. 'd', deadline, ID)
  else
    tended(deadline)
  end
end
if status ~= HELD and is_changed then save() end
return struct.pack('<d<d<d<d<d<d<d<d', status, now, reaped, expired, 0, 0, #raws[1] / 8, #raws[2] / 8)
  .. raws[1] .. raws[2] .. raws[3]
