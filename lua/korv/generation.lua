--- Generations: what one load of the endpoint scripts made. A load goes on aside, in slices, and what it makes serves only once it is
-- whole and was checked. Knows nothing of servers, and of requests only that the last one has ended.
-- @module korv.generation

local core = require "korv.core"
local app = require "korv.app"
local every = require "korv.every"
local loader = require "korv.loader"
local log = require "korv.log"
local modules = require "korv.modules"
local task = require "korv.task"
local uv = require "luv"

local generation = {}

local Generation = {}
Generation.__index = Generation

local LIMIT = 10 -- seconds

-- korv as the scripts of a generation see it: a timer made too late never begins.
local function bound_korv(self)
  local function begin(seconds, fn)
    local timer = every.new(seconds, fn, 2)
    self.timers[timer] = true
    if self.phase == "serving" then timer:start() end
    return timer
  end
  return function(korv) return setmetatable({ every = begin }, { __index = korv }) end
end

local function reloader(self, reload)
  return reload and function()
    if self.phase == "loading" then error("app:reload: the script is being loaded just now", 3) end
    return task.wait(reload, 4)
  end
end

local function folders_in(paths)
  local folders = {}
  for _, path in ipairs(paths) do
    local stat = uv.fs_stat(path)
    if stat and stat.type == "directory" then folders[#folders + 1] = path:gsub("(.)/+$", "%1") end
  end
  return folders
end

local function new(paths, options)
  local self = setmetatable({
    number = options.number or 1, phase = "loading", timers = {}, folders = folders_in(paths),
  }, Generation)
  self.modules = modules.new { korv = bound_korv(self) }
  self.files = self.modules.files
  self.app = app.after(options.base, { state = options.state, generation = self.number, reloader = reloader(self, options.reload) })
  return self
end

-- Errors ---------------------------------------------------------------------------------------------------------------------------

local HERE = debug.getinfo(1, "S").short_src .. ":"

local function text_of(problem)
  local ok, text = pcall(tostring, problem)
  return ok and text:match "^[^\n]*" or ("an error that is a %s"):format(type(problem))
end

-- Lua shortens long paths in messages: "...rest/of/path.lua:3: …".
local function with_whole_path(self, text)
  local tail = text:match "^%.%.%.(.-):%d+: "
  if not tail then return text end
  for _, path in ipairs(self.files) do
    if path:sub(-#tail) == tail then return path .. text:sub(#tail + 4) end
  end
  return text
end

local function names_file(self, text)
  for _, path in ipairs(self.files) do
    if text:sub(1, #path + 1) == path .. ":" then return true end
  end
end

local SHAPE = "a script returns a function that takes the app and registers its endpoints: return function(app) … end"

-- One line that names a file of the generation, once. A script's last call stands in the script's place, and its error in ours.
local function placed(self, problem)
  local text = text_of(problem)
  if text:sub(1, #HERE) == HERE then text = text:gsub("^.-:%d+: ", "", 1) end
  text = with_whole_path(self, text)
  if self.running and text:find("a nil value (global 'app')", 1, true) then text = text .. ": " .. SHAPE end
  if self.script and not names_file(self, text) then text = self.script .. ": " .. text end
  return text
end

-- A load ---------------------------------------------------------------------------------------------------------------------------

local function register(self, path, result)
  self.script = path
  if type(result) ~= "function" then
    error(("%s: %s"):format(path, SHAPE), 0)
  end
  self.app.common_roles = nil -- they are each script's own
  result(self.app)
  self.script = nil
end

-- Which files of a folder are modules of its scripts is known when all have run.
local function load_scripts(self, scripts)
  local results = {}
  self.running = true -- none has been given the app yet
  for i, path in ipairs(scripts) do
    self.script = path
    results[i] = self.modules:run(path)
  end
  self.running = false
  for i, path in ipairs(scripts) do
    local is_module = scripts[path] and self.modules:is_required(path)
    if not is_module then register(self, path, results[i]) end
  end
end

-- true, or nil, a message and a name; raises what the scripts raise.
local function load_all(self, paths)
  local scripts, message, name = loader.find(paths)
  if not scripts then return nil, message, name end
  load_scripts(self, scripts)
  local ok
  ok, message = self.app:verify()
  if not ok then return nil, message, "ELOAD" end
  return true
end

local function succeeded(self, done, required)
  self.modules:settle(required)
  self.phase = "loaded"
  done(self)
end

local function failed(self, done, message, name)
  self.modules:settle()
  self.phase = "failed"
  self:unload()
  done(nil, message, name or "ELOAD", self.files)
end

--- Loads endpoint scripts aside. What is served meanwhile gets its turns.
-- @tparam {string,...} paths files that return `function(app) … end`, and folders, which stand for their *.lua
-- @tparam table options
--
-- - `number` of the generation (1)
-- - `state` the table that is `app.state`
-- - `base` an app whose endpoints and middleware come first
-- - `limit` seconds that the load may take (10)
-- - `required` called when an endpoint requires a module that the load did not
-- - `reload` called by `app:reload` with a function to be called with true, or nil and a message
-- @tparam function done called with the generation, or nil, a message with file and line, a name, and the list of files that were loaded
-- or looked for
-- @treturn table with a method `cancel`
function generation.load(paths, options, done)
  local self = new(paths, options)
  return core.slices(function() return load_all(self, paths) end, options.limit or LIMIT, function(whole, ok, message, name)
    if whole and ok then return succeeded(self, done, options.required) end
    if whole then return failed(self, done, message, name) end
    if message then log.debug("loading failed: %s\n%s", text_of(ok), message) end
    return failed(self, done, placed(self, ok))
  end, self.modules.sources)
end

-- Life -----------------------------------------------------------------------------------------------------------------------------

--- It serves from now on: its timers begin. Whoever runs is held by the loop; the others nobody has to hold any more.
function Generation:start()
  self.phase = "serving"
  for timer in pairs(self.timers) do timer:start() end
  setmetatable(self.timers, { __mode = "k" })
end

--- It serves no new requests: its timers end.
function Generation:stop()
  self.phase = "stopped"
  for timer in pairs(self.timers) do timer:stop() end
  self.timers = {}
end

--- Its last request has ended: what `app:on` was given for this runs.
function Generation:unload()
  for _, fn in ipairs(self.app:take_unloads()) do core.spawn(function() fn() end) end
end

return generation
