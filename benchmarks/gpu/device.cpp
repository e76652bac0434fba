// A CUDA device that computes on the CPU, for builds of torch without CUDA.
//
// Its tensors say "cuda:0" and lie in the CPU's memory. Every kernel is the CPU's, run over tensors that share that
// memory and say "cpu"; what comes out says "cuda:0" again. As on a GPU, tensors and generators of other devices are
// refused, random numbers come from a generator of the device's own, and a forked process may not use it.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <set>
#include <string>
#include <unistd.h>
#include <utility>

namespace {

using at::Tensor;
using c10::IValue;

const c10::Device GPU(c10::kCUDA, 0);
const c10::Stream STREAM(c10::Stream::DEFAULT, GPU);

// What torch asks a device for: the current one, streams, events, generators. There is one of each, always ready.

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return GPU; }
  c10::Device getDevice() const override { return GPU; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return STREAM; }
  c10::Stream getDefaultStream(c10::Device) const override { return STREAM; }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return STREAM; }
  c10::Stream getNewStream(c10::Device, int) const override { return STREAM; }
  c10::Stream exchangeStream(c10::Stream) const override { return STREAM; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct Generator final : at::CPUGeneratorImpl {
  Generator() { device_ = GPU; }
};

at::Generator& default_generator() {
  static at::Generator generator = at::make_generator<Generator>();
  return generator;
}

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    static bool first = true;  // made by torch_cuda.py, which has no other way to the default one
    return std::exchange(first, false) ? default_generator() : at::make_generator<Generator>();
  }
};

// The same memory under another device

c10::DataPtr memory_of(const c10::Storage& storage, c10::Device device) {
  auto release = [](void* kept) { delete static_cast<c10::Storage*>(kept); };
  return {const_cast<void*>(storage.data()), new c10::Storage(storage), release, device};
}

c10::Storage shared(const c10::Storage& storage, c10::Device device) {
  auto size = storage.sym_nbytes();
  return c10::Storage(
      c10::Storage::use_byte_size_t(), size, memory_of(storage, device), c10::GetCPUAllocator(), true);
}

Tensor like(const Tensor& tensor, Tensor shared) {
  shared.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) shared._set_conj(true);
  if (tensor.is_neg()) shared._set_neg(true);
  return shared;
}

Tensor over(const Tensor& tensor, const c10::Storage& storage, c10::DispatchKey key) {
  c10::DispatchKeySet keys(key);
  return like(tensor, at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), keys, tensor.dtype()));
}

Tensor view_of(const Tensor& tensor, const Tensor& base) {
  auto kind = c10::TensorImpl::VIEW;
  auto storage = c10::Storage(base.storage());
  return like(
      tensor, at::detail::make_tensor<c10::TensorImpl>(kind, std::move(storage), base.key_set(), tensor.dtype()));
}

struct Pair {
  Tensor gpu, cpu;
  const c10::StorageImpl* storage;
};

template <class Change>
c10::List<Tensor> each(const IValue& tensors, Change change) {
  c10::List<Tensor> changed;
  for (const Tensor& tensor : tensors.toTensorVector()) changed.push_back(change(tensor));
  return changed;
}

// One call of an operator over tensors of this device

struct Call {
  std::vector<Pair> tensors;
  std::vector<std::pair<c10::Storage, c10::Storage>> storages;  // of this device, and the same as the CPU's
  bool foreign = false;  // whether a tensor of the CPU, a single number aside, is among the arguments
  bool asked = false;  // whether the device is named in an argument
  at::Generator generator = default_generator();

  Tensor to_cpu(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) {
      foreign |= tensor.defined() && tensor.device().is_cpu() && tensor.dim() > 0;
      return tensor;
    }
    for (auto& pair : tensors)
      if (pair.gpu.is_same(tensor)) return pair.cpu;
    auto cpu = over(tensor, storage_to_cpu(tensor.storage()), c10::DispatchKey::CPU);
    tensors.push_back({tensor, cpu, cpu.storage().unsafeGetStorageImpl()});
    return cpu;
  }

  c10::Storage storage_to_cpu(const c10::Storage& storage) {
    for (auto& [gpu, cpu] : storages)
      if (gpu.is_alias_of(storage)) return cpu;
    storages.emplace_back(storage, shared(storage, c10::kCPU));
    return storages.back().second;
  }

  c10::Storage storage_to_gpu(const c10::Storage& storage) {
    for (auto& [gpu, cpu] : storages)
      if (cpu.is_alias_of(storage)) return gpu;
    return shared(storage, GPU);
  }

  IValue argument_to_cpu(const IValue& value) {
    if (value.isTensor()) return to_cpu(value.toTensor());
    if (value.isTensorList()) return each(value, [this](const Tensor& tensor) { return to_cpu(tensor); });
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      auto given = value.toOptionalTensorList();
      for (std::optional<Tensor> tensor : given)
        list.push_back(tensor ? std::optional<Tensor>(to_cpu(*tensor)) : tensor);
      return list;
    }
    if (value.isStorage() && value.toStorage().device().is_cuda()) return storage_to_cpu(value.toStorage());
    if (value.isDevice() && value.toDevice().is_cuda()) {
      asked = true;
      return c10::Device(c10::kCPU);
    }
    if (value.isGenerator()) {
      generator = value.toGenerator();
      TORCH_CHECK(
          generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found '", generator.device(),
          "'");
      return IValue();
    }
    return value;
  }

  // An operator may have given a tensor another shape, or other memory.
  void hand_on_changes() {
    for (auto& [gpu, cpu] : storages) {
      if (gpu.data() == cpu.data() && gpu.nbytes() == cpu.nbytes()) continue;
      gpu.unsafeGetStorageImpl()->set_data_ptr_noswap(memory_of(cpu, GPU));
      gpu.unsafeGetStorageImpl()->set_nbytes(cpu.nbytes());
    }
    for (auto& pair : tensors) {
      auto* gpu = pair.gpu.unsafeGetTensorImpl();
      if (pair.cpu.storage().unsafeGetStorageImpl() != pair.storage)
        gpu->set_storage_keep_dtype(storage_to_gpu(pair.cpu.storage()));
      bool same_shape = pair.gpu.sizes() == pair.cpu.sizes() && pair.gpu.strides() == pair.cpu.strides();
      if (!same_shape || pair.gpu.storage_offset() != pair.cpu.storage_offset())
        gpu->set_sizes_and_strides(pair.cpu.sizes(), pair.cpu.strides(), pair.cpu.storage_offset());
    }
  }

  Tensor to_gpu(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.device().is_cpu()) return tensor;
    for (auto& pair : tensors)
      if (pair.cpu.is_same(tensor)) return pair.gpu;
    for (auto& pair : tensors)
      if (tensor.storage().is_alias_of(pair.cpu.storage())) return view_of(tensor, pair.gpu);
    return over(tensor, storage_to_gpu(tensor.storage()), c10::DispatchKey::CUDA);
  }

  IValue result_to_gpu(const IValue& value) {
    if (value.isTensor()) return to_gpu(value.toTensor());
    if (value.isTensorList()) return each(value, [this](const Tensor& tensor) { return to_gpu(tensor); });
    return value;
  }
};

// Operators that take tensors of both devices on a GPU, too
const std::set<std::string> MIXING = {
    "aten::copy_", "aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::_ctc_loss",
    "aten::_ctc_loss_backward"};

void run_on_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  static const pid_t owner = getpid();
  const auto& name = op.schema().name();
  TORCH_CHECK(owner == getpid(), "Cannot re-initialize CUDA in forked subprocess: ", name);

  Call call;
  auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
  std::vector<IValue> given(arguments.begin(), arguments.end());
  torch::jit::drop(*stack, given.size());
  for (auto& value : given) stack->push_back(call.argument_to_cpu(value));
  TORCH_CHECK(
      !call.foreign || call.tensors.empty() || MIXING.count(name),
      "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (", name, ")");

  bool random = op.hasTag(at::Tag::nondeterministic_seeded);
  at::Generator cpu_generator = at::detail::getDefaultCPUGenerator();
  Tensor cpu_state;
  if (random) {
    cpu_state = cpu_generator.get_state();
    cpu_generator.set_state(call.generator.get_state());
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  if (random) {
    call.generator.set_state(cpu_generator.get_state());
    cpu_generator.set_state(cpu_state);
  }

  call.hand_on_changes();
  bool onto_cpu = name == "aten::copy_" && !given[0].toTensor().is_cuda();
  if (onto_cpu || (call.tensors.empty() && !call.asked)) return;
  size_t first = stack->size() - op.schema().returns().size();
  for (size_t i = first; i < stack->size(); ++i) (*stack)[i] = call.result_to_gpu((*stack)[i]);
}

// A GPU's softmax reads fp16 and gives fp32 in one kernel, which CPUs lack.

Tensor softmax(const Tensor& input, int64_t dim, bool half_to_float) {
  auto values = half_to_float ? input.to(at::kFloat) : input;
  auto exponentials = (values - values.amax({dim}, true)).exp();
  return exponentials / exponentials.sum({dim}, true);
}

Tensor log_softmax(const Tensor& input, int64_t dim, bool half_to_float) {
  auto values = half_to_float ? input.to(at::kFloat) : input;
  return values - values.logsumexp({dim}, true);
}

Tensor softmax_backward(const Tensor& gradient, const Tensor& output, int64_t dim, at::ScalarType dtype) {
  auto product = gradient * output;
  return (product - output * product.sum({dim}, true)).to(dtype);
}

Tensor log_softmax_backward(const Tensor& gradient, const Tensor& output, int64_t dim, at::ScalarType dtype) {
  return (gradient - output.exp() * gradient.sum({dim}, true)).to(dtype);
}

bool no_ctc_kernel(const Tensor&, const Tensor&, at::IntArrayRef, at::IntArrayRef, int64_t) { return false; }
bool no_ctc_kernel_for_tensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t) { return false; }

}  // namespace

namespace at {
static RegistererCUDAHooksRegistry hooks(
    "CUDAHooks", CUDAHooksRegistry(), RegistererCUDAHooksRegistry::DefaultCreator<Hooks>, "a simulated GPU");
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  // Made of others, these would look for kernels that only a build with CUDA has.
  for (auto name : {"copy_", "convolution", "convolution_backward"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  library.impl("_softmax", softmax);
  library.impl("_softmax_backward_data", softmax_backward);
  library.impl("_log_softmax", log_softmax);
  library.impl("_log_softmax_backward_data", log_softmax_backward);
  for (auto name : {"_use_cudnn_ctc_loss", "_use_miopen_ctc_loss"}) {
    library.impl(name, no_ctc_kernel);
    library.impl(std::string(name).append(".Tensor").c_str(), no_ctc_kernel_for_tensors);
  }
}
