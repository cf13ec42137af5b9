--- Endpoints that do not come back by themselves, each in a way of its own. runaway_spec.lua asks a server for them, and watchdog_test.c
-- calls them. None waits, so that the watchdog has to end each of them.

local endpoints = {}

local function spin()
  while true do end
end

-- A table whose metamethods are all one function.
local function with_metamethods(fn)
  local meta = {}
  for name in ("index newindex call add concat lt eq len unm close tostring"):gmatch "%a+" do meta["__" .. name] = fn end
  return setmetatable({}, meta)
end

-- Loops --------------------------------------------------------------------------------------------------------------------------

endpoints["while"] = spin

function endpoints.numeric_for()
  for _ = 1, math.huge do end
end

function endpoints.generic_for()
  for _ in function() return true end do end
end

endpoints["repeat"] = function()
  repeat local never = false until never
end

endpoints["goto"] = function()
  ::again::
  goto again
end

function endpoints.tail_calls()
  local function ping(pong) return pong(ping) end
  return ping(ping)
end

function endpoints.growing()
  local list = {}
  while true do
    list[#list % 1000 + 1] = ("x"):rep(10)
  end
end

-- Errors and whoever catches them ------------------------------------------------------------------------------------------------

function endpoints.pcall_of_error()
  while true do pcall(error) end
end

function endpoints.pcall_of_loop()
  while true do pcall(spin) end
end

function endpoints.recursive_pcall()
  local function again()
    while true do pcall(again) end
  end
  again()
end

function endpoints.message_handler() xpcall(error, spin) end

function endpoints.message_handler_of_loop() xpcall(spin, spin) end

function endpoints.message_handler_in_gsub()
  return ("x"):gsub("x", function()
    while true do xpcall(spin, spin) end
  end)
end

-- Lua called by C ----------------------------------------------------------------------------------------------------------------

function endpoints.gsub_callback() return ("x"):gsub("x", spin) end

function endpoints.gsub_callback_with_pcall()
  while true do
    pcall(string.gsub, "x", "x", function()
      while true do pcall(spin) end
    end)
  end
end

function endpoints.sort_comparator() table.sort({ 1, 2, 3 }, spin) end

function endpoints.sorts()
  while true do table.sort({ 3, 2, 1 }, function(a, b) return a < b end) end
end

function endpoints.loads()
  local here = debug.getinfo(1, "S").source
  while true do load("return 1", here)() end
end

function endpoints.load_reader() return load(spin) end

function endpoints.required()
  package.preload["spec.loops"] = spin
  return require "spec.loops"
end

function endpoints.tostring() return tostring(with_metamethods(spin)) end

function endpoints.format() return ("%s"):format(with_metamethods(spin)) end

function endpoints.concat()
  return table.concat(setmetatable({}, { __index = function() return "" end }), "", 1, 2^53 | 0)
end

-- Metamethods --------------------------------------------------------------------------------------------------------------------

function endpoints.index() return with_metamethods(spin).field end

function endpoints.newindex() with_metamethods(spin).field = 1 end

function endpoints.call() return (with_metamethods(spin)()) end

function endpoints.less() return with_metamethods(spin) < with_metamethods(spin) end

function endpoints.concatenation() return "x" .. with_metamethods(spin) end

function endpoints.arithmetic()
  local n = with_metamethods(function() return 1 end)
  while true do pcall(function() return n + n end) end
end

-- Coroutines of the endpoint's own -----------------------------------------------------------------------------------------------

local function nested(depth, body)
  if depth == 0 then return body() end
  return coroutine.wrap(nested)(depth - 1, body)
end

function endpoints.wrapped() return nested(1, spin) end

function endpoints.wrapped_three_deep() return nested(3, spin) end

function endpoints.wrapped_thirty_deep() return nested(30, spin) end

function endpoints.wrapped_with_pcall()
  local function body()
    while true do pcall(nested, 1, spin) end
  end
  while true do pcall(nested, 3, body) end
end

function endpoints.wrapped_in_gsub()
  local function body() return ("x"):gsub("x", spin) end
  while true do
    pcall(string.gsub, "x", "x", function()
      while true do pcall(nested, 2, body) end
    end)
  end
end

function endpoints.resumed()
  while true do coroutine.resume(coroutine.create(spin)) end
end

function endpoints.resumes()
  while true do coroutine.resume(coroutine.create(error)) end
end

function endpoints.resumes_itself()
  while true do coroutine.resume((coroutine.running())) end
end

function endpoints.resumes_its_resumer()
  local outer = coroutine.running()
  coroutine.wrap(function()
    while true do
      coroutine.resume(outer)
      pcall(coroutine.close, outer)
    end
  end)()
end

function endpoints.yields_to_itself()
  local step = coroutine.wrap(function()
    while true do coroutine.yield() end
  end)
  while true do step() end
end

function endpoints.iterates()
  for _ in coroutine.wrap(function()
    while true do coroutine.yield(1) end
  end) do end
end

function endpoints.made_in_another()
  local inner = coroutine.create(spin)
  coroutine.wrap(function() coroutine.resume(inner) end)()
end

function endpoints.comparator_is_a_coroutine() table.sort({ 1, 2, 3 }, coroutine.wrap(spin)) end

-- Ends that do not end -----------------------------------------------------------------------------------------------------------

function endpoints.closes()
  local _ <close> = with_metamethods(spin)
  return 200
end

function endpoints.closes_after_an_error()
  pcall(function()
    local _ <close> = with_metamethods(spin)
    error "no"
  end)
end

function endpoints.closes_after_a_stop()
  local _ <close> = with_metamethods(spin)
  spin()
end

function endpoints.closes_a_coroutine()
  local co = coroutine.create(function()
    local _ <close> = with_metamethods(spin)
    coroutine.yield()
  end)
  coroutine.resume(co)
  coroutine.close(co)
end

function endpoints.closes_in_a_coroutine_after_an_error()
  while true do
    pcall(coroutine.wrap(function()
      local _ <close> = with_metamethods(spin)
      error "no"
    end))
  end
end

function endpoints.closes_in_a_coroutine_after_a_stop()
  coroutine.wrap(function()
    local _ <close> = with_metamethods(spin)
    spin()
  end)()
end

-- Against the watchdog -----------------------------------------------------------------------------------------------------------

function endpoints.takes_the_hook_away()
  while true do debug.sethook() end
end

function endpoints.takes_the_hook_away_in_a_coroutine()
  coroutine.wrap(function()
    while true do pcall(debug.sethook) end
  end)()
end

function endpoints.hooks_itself()
  debug.sethook(function() end, "crl", 1)
  while true do pcall(function() end) end
end

return function(app)
  for name, endpoint in pairs(endpoints) do app:get("/" .. name, endpoint) end
end
